"""REST, the contract of docs/reference: routers, schemas, problems, authorization."""
