"""HTTP: routers, authentication and problem documents."""
