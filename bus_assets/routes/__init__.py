"""The routes of this deployment, one file each, listed explicitly: what is not in ROUTES is not driven."""

from bus_assets.routes.flights import flights, flights_archive

ROUTES = (flights, flights_archive)
