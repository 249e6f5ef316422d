"""Tests; they mirror app/, client/ and demo/."""
