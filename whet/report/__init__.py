"""Reports for people: the data of `run/record.py` as text, and as one HTML page."""

from __future__ import annotations
