// Package identity holds the keys of a Shoal installation and issues everybody's NATS credentials.
//
// # What it guarantees
//
//   - All keys of an installation are made together, at the first start, or not at all: a crash leaves a complete
//     directory or none. They are kept as seed files that only their owner may read; Open refuses anything looser.
//   - The accounts are those of the design page, section 7: SYS, CTL (streams and controllers), AGT (agents), USR (people and
//     API clients), ENROLL (joiners). Agents and people share no account with a stream and see imports only, so that they
//     can't aim a reply subject at one.
//   - What a role may do stands in its account, not in the credentials: a changed list in package subjects holds for
//     everybody from the next start of the controller, and nobody needs new credentials.
//   - A user's name is bound by its signature. Templates make it the host's id, or the caller's token, of every subject.
//
// Starting servers and telling external ones about changed accounts is left to controller/site; who may have credentials to
// controller/api.
package identity
