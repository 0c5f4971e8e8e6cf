//! The node proxy for ambient service mesh.
