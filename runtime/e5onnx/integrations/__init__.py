"""Adapters for other libraries, one file each. Haystack's is in `haystack_integrations`, where Haystack loads it from."""
