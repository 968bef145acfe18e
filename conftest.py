"""nbval compares what a cell prints, not what libraries say on stderr."""


def pytest_collectstart(collector):
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += ("stderr",)
