"""The version, where every room can read it without importing the root."""

version = "0.1.0"
