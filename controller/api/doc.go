// Package api is what people and programs can ask of a controller: the registry of operations, and the NATS service made
// from it.
//
// # One declaration
//
// An [Operation] is declared once, in one of the files ops_*.go: kind, verb, texts, class, a struct of parameters with
// tags, the function that does it, and the columns of its table. Everything else follows from that: the subject it is
// served on, the strict decoding of requests, the JSON schema, the shoalctl command with its flags, help and
// completion, and the name under which the journal records it.
//
// # What it guarantees
//
// A request is refused whole or done whole: parameters are decoded strictly (an unknown, misspelt or repeated field is
// refused by name), references are resolved by id or unique name, and everything that a write decides is decided
// inside one transaction of the store. Answers come within about a second; what takes longer on the hosts gets a task.
// A write that is repeated with the same request id is done once.
//
// The caller is the one that the NATS server vouches for: token four of the subject, which the caller's signing key
// pins, in a request that came through the import of the users' account. A request without that, or one whose answer
// would not go to a requester's inbox, is refused.
//
// # What it leaves to others
//
// Who may do what is decided by the roles in package subjects, which the NATS server enforces before a request gets
// here. What a change means is decided by controller/plan, durability and order by controller/store. It is served only
// while the controller leads, which controller.Run sees to: a stand-by has no endpoints, so that a request can't reach it.
package api
