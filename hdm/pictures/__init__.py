"""Picture files: recognised, decoded in processes of their own, and brought to pixels in sRGB."""
