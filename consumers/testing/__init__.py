"""To test a consumer without a broker, in any test framework: see docs/testing.md."""

from kinguin_streams.consumers.testing import events
from kinguin_streams.consumers.testing.arrivals import Arrival, arrivals, order_events, product_events
from kinguin_streams.consumers.testing.driver import ProjectionDriver
from kinguin_streams.consumers.testing.handler_driver import HandlerDriver

__all__ = ["Arrival", "HandlerDriver", "ProjectionDriver", "arrivals", "events", "order_events", "product_events"]
