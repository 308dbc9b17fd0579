"""The version of the package, where modules can import it without the rest of the package."""

__version__ = "0.1.0"
