key_prefix "NAMESPACE/" { policy = "write" }
session "NODE" { policy = "write" }
