"""Attention inside frames and over packed rows: two front doors, one file a platform, one rule for rows."""
