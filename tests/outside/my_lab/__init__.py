"""A laboratory's own package: what a person writes beside mimkit, without changing it."""
