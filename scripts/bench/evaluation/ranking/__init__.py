"""What `study_ranking.py` is made of: statistics of the rankings, and their table and plot."""
