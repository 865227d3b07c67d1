//! In preparation: distributed locks and leader election on Consul. There is nothing to use here yet.
