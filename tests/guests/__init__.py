"""Tests with packages of the extra `guests`, run by `make test-guests`."""
