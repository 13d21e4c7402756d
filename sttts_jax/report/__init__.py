"""What a person sees: pages, charts, films."""
