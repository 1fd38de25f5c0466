"""Schedules that others would use: published ones, and those computed for the model at hand.

May import `metrics`.
"""
