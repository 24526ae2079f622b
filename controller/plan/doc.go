// Package plan decides: it turns what users ask for into resources, and resources into the documents of hosts.
//
// # What it guarantees
//
// Everything here is pure. Functions on a [resource.Tx] take time, ids and randomness from it and nothing from
// elsewhere, so a transaction can be run again; functions on a [resource.Reader] give the same result for the same view.
// A function that returns an error may have changed the transaction: whoever runs it throws the transaction away.
//
//   - A VM is created whole (its volumes, NICs and addresses, a host that has room) or refused with a reason for
//     every host that was ruled out. Nothing is placed on missing data: a host, a storage or a domain that nobody has
//     heard of counts as unusable, not as empty, and unknown is not stopped.
//   - Exactly one host's document wants a VM to run. A VM moves only when its old host has confirmed that it is off, or
//     it never ran there; a volume is given to another VM only when the former one has let it go.
//   - Render depends on resources only, never on what was observed, and equal resources give equal bytes.
//   - Data is removed by tombstones only: a volume's record stays until a host has confirmed that its file is gone.
//
// What users may do at all, waiting and publishing are left to others.
//
// # How a VM goes away
//
// Destroy powers it off and puts it into the recycle bin; its data volumes are detached, its root volume and addresses
// stay. Expunge, by hand or after [VMKept], takes steps that Tick makes as hosts confirm: the domain is off, the domain
// is gone, the records of VM and NICs go, the root volume becomes a tombstone, the file is gone, its record goes.
package plan
