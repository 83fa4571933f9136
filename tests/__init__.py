"""Tests of pm25-sweeps; the folders mirror the packages."""
