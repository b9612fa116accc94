"""Making and checking data sets: info files, occupancy labels. Nothing here is needed at training time."""
