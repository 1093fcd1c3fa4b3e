"""The routes of :mod:`tests.crash.message_routes` as a deployment has them: where its things are says the environment.

More trips at a time than in the second part: one that departed and was not asked for is in nobody's way then, for its two minutes.
"""

from bus_assets.settings import settings
from tests.crash.message_routes import Place, definitions, routes

_here = settings()
assert _here.cloud_url
_place = Place(_here.home, _here.warehouse_url, _here.depot_url, _here.cloud_url, batch=30, in_flight=10)
ROUTES = tuple(routes(_place).values())
defs = definitions(_place)
