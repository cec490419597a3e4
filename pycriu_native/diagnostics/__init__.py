"""Diagnosis before a call: preflight, doctor, explain."""
