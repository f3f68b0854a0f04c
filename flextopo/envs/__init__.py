"""Gymnasium environments over the cluster simulator."""
