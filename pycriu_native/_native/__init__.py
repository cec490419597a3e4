"""The compiled extension, and its only importer."""
