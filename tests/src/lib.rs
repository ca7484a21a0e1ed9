//! What is tested through the doors that users take, and needs more than one of our packages running.
//!
//! **Belongs here:** every rule of the API against a real API server (`apiserver/`), a hub and four hospitals on real
//! clusters (`e2e/`), the Go module that those clusters' programs are built from (`cluster/`), and the bench of a whole
//! round over separate processes (`bench/`). **Does not belong here:** what one package can show alone, which is tested
//! beside its code.
