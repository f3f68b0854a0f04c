"""Servers: their hardware, its alignment levels, and the FlexTopo graph."""
