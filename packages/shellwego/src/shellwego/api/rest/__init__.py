"""REST, which its OpenAPI document describes: routers, schemas, problems, authorization."""
