"""Bound whole networks: Lipschitz constants, propagated through a program operation by operation."""
