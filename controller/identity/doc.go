// Package identity holds the keys of a Shoal installation and issues everybody's NATS credentials.
//
// # What it guarantees
//
//   - All keys of an installation are made together, at the first start, or not at all: a crash leaves a complete
//     directory or none. They are kept as seed files that only their owner may read; Open refuses anything looser.
//     What came with a later version is added to a directory whose layout file says that it is older, and only then: a key
//     that was lost is never replaced.
//   - The accounts are those of the design page, section 7: SYS, CTL (streams and controllers), AGT (agents), USR (people and
//     API clients), ENROLL (guests). Agents and people share no account with a stream and see imports only, so that they
//     can't aim a reply subject at one.
//   - What a role may do stands in its account, not in the credentials: a changed list in package subjects holds for
//     everybody from the next start of the controller, and nobody needs new credentials.
//   - Credentials of files made beside the keys, of sessions and of hosts are signed by keys of their own: Nats-Request-Info
//     says which (SigningKey). A guest is whoever connects without credentials, and may make three requests.
//   - Revocations are kept as long as what they revoke could be good, no longer, and are never taken back by another one.
//   - What is sealed can be read by who has the keys only. A password's hash costs at most what the limits say, two at once.
//   - The key of the certificate authority never leaves the directory. Replacing it takes three steps, none of which locks
//     out who has taken part in those before.
//   - A user's name is bound by its signature. Templates make it the host's id, or the caller's token, of every subject.
//
// Starting servers and telling external ones about changed accounts is left to controller/site; who may have credentials to
// controller/api.
package identity
