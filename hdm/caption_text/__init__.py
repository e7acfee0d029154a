"""What captions say: cleaned, whether they speak of sides, and what their tags are."""
