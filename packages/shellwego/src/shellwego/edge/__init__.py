"""Ingress: HAProxy, driven from route tables."""
