// Package certificate keeps the certificate that a controller's ports present, and says what clients have to trust.
//
// # What it guarantees
//
//   - There is a good certificate whenever New has returned: one of the installation's own authority, made anew at half of its
//     life, when the authority changes, or when the machine gets another address or name; or the given one, read anew when its
//     files change.
//   - Connections ask for the certificate when they begin. A new one drops nobody.
//   - A given certificate whose files can't be used, as in the middle of being replaced, leaves the last good one in place.
//   - The chain ends with the authority's certificate, so that who knows only its pin can check it.
//
// The authority and its key are the business of controller/identity; which ports there are of controller.
package certificate
