"""The two projections that come with the package."""

from kinguin_streams.consumers.order_state import ORDER_STATE
from kinguin_streams.consumers.product_changes import PRODUCT_CHANGES
from kinguin_streams.consumers.projection import Projection

SAMPLES: tuple[Projection, ...] = (ORDER_STATE, PRODUCT_CHANGES)
