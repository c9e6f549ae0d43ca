"Truths to measure against."
