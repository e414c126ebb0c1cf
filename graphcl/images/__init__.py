"""Models for images: a family of unlike small networks, and a classifier on any of them."""

from graphcl.images.classifier import ImageClassifier
from graphcl.images.encoders import IMAGE_ENCODERS, ImageEncoder

__all__ = ["IMAGE_ENCODERS", "ImageClassifier", "ImageEncoder"]
