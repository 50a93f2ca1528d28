"""The phantom's words: requests and reports, the grammar behind them, and the exact scorer that reads them back."""
