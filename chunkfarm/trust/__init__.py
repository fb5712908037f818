"""Who may join, who may ask, and how either is proved."""
