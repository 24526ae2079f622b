// Package backup makes, keeps, checks and opens backups of a controller: what can't be made again from anything else. That is the
// installation's keys and its precious streams, the journal above all; projections, documents and statuses follow
// from these and from the hosts.
//
// # What it guarantees
//
//   - A backup is one file, a tar of a manifest and its members, whole or absent under its name: it is written aside, synced,
//     renamed, and read back once before it counts.
//   - It is encrypted with age, to a passphrase or to recipients, unless the operator says in so many words that it is not
//     to be; then everybody is told, each time. `age --decrypt` and `tar` open it without Shoal.
//   - The streams are copied while they are written. The journal is the truth at one sequence; the keys are copied after it, so
//     that every revocation that the journal knows of is among them.
//   - Only what bears this installation's name in the target is listed or removed, and the newest n stay.
//   - Verify restores into a server of its own in a scratch directory and rebuilds the state, as a restore does; a backup that
//     it lets pass can be restored.
//
// # What it leaves to others
//
// Copying and restoring streams is controller/site's, rebuilding the state controller/store's, what becomes of hosts after
// a restore controller/plan's and the operator's. Image files are not in a backup: their records are, and where each came from.
package backup
