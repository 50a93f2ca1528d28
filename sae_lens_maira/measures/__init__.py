"""Statistics that every claim about features needs: disjoint patients, intervals, and rank-based scores."""
