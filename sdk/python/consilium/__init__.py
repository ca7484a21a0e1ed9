"""Models of Consilium's federated studies: opened, checked by their digest, and rebuilt."""

from .model import Model, ModelError, digest, open

__all__ = ["Model", "ModelError", "digest", "open"]
