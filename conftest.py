"""nbval compares what a cell prints, not what libraries say on stderr, nor the pixels of moving pictures (those of others it skips by itself)."""


def pytest_collectstart(collector):
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += ("stderr", "image/gif")
