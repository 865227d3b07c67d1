//! In preparation: distributed locks and leader election on etcd. There is nothing to use here yet.
