package resource

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// ErrorCode is the machine-readable sort of a refusal. It is also the NATS service error code's meaning.
type ErrorCode string

// The codes, with the number that API clients see.
const (
	CodeInvalid   ErrorCode = "invalid"    // 400: a field is wrong
	CodeForbidden ErrorCode = "forbidden"  // 403: the caller may not
	CodeNotFound  ErrorCode = "not-found"  // 404: something named is not there
	CodeConflict  ErrorCode = "conflict"   // 409: it contradicts what is there now
	CodeInUse     ErrorCode = "in-use"     // 409: something still needs it
	CodeCapacity  ErrorCode = "capacity"   // 422: no host, storage or address is left that fits; Reasons say why
	CodeQuota     ErrorCode = "quota"      // 422: the account would have more than it may
	CodeLogin     ErrorCode = "login"      // 401: who asks is not known: log in
	CodeBusy      ErrorCode = "busy"       // 429: too many requests of this sort: wait
	CodeNotLeader ErrorCode = "not-leader" // 503: this controller does not lead; ask again
	CodeInternal  ErrorCode = "internal"   // 500
)

// Number is the code's number.
func (c ErrorCode) Number() int {
	switch c {
	case CodeInvalid:
		return 400
	case CodeForbidden:
		return 403
	case CodeNotFound:
		return 404
	case CodeConflict, CodeInUse:
		return 409
	case CodeCapacity, CodeQuota:
		return 422
	case CodeLogin:
		return 401
	case CodeBusy:
		return 429
	case CodeNotLeader:
		return 503
	default:
		return 500
	}
}

// Error is a refusal that a user can act on: what is wrong, with which field, and what to do.
type Error struct {
	Code    ErrorCode `json:"code"`
	Field   string    `json:"field,omitempty"`
	Message string    `json:"message"`
	Remedy  string    `json:"remedy,omitempty"`
	// Reasons says why each candidate was ruled out.
	Reasons []Reason `json:"reasons,omitempty"`
}

// Reason says why a candidate was ruled out.
type Reason struct {
	Kind Kind   `json:"kind"`
	ID   string `json:"id"`
	Name string `json:"name"`
	Why  string `json:"why"`
}

// Error is the field and the message, then the reasons.
func (e *Error) Error() string {
	var b strings.Builder
	if e.Field != "" {
		b.WriteString(e.Field + ": ")
	}
	b.WriteString(e.Message)
	for i, r := range e.Reasons {
		if i == 0 {
			b.WriteString(": ")
		} else {
			b.WriteString("; ")
		}
		fmt.Fprintf(&b, "%s %s: %s", r.Kind, r.Name, r.Why)
	}
	return b.String()
}

// Invalid says that a field is wrong.
func Invalid(field, format string, args ...any) *Error {
	return &Error{Code: CodeInvalid, Field: field, Message: fmt.Sprintf(format, args...)}
}

// NotFound says that a resource is not there.
func NotFound(kind Kind, id string) *Error {
	return &Error{
		Code: CodeNotFound, Field: string(kind), Message: fmt.Sprintf("no %s has the id or name %q", kind, id),
		Remedy: fmt.Sprintf("see shoalctl %s list", kind),
	}
}

// Conflict says that a change contradicts what is there.
func Conflict(field, format string, args ...any) *Error {
	return &Error{Code: CodeConflict, Field: field, Message: fmt.Sprintf(format, args...)}
}

// WithRemedy adds what to do.
func (e *Error) WithRemedy(format string, args ...any) *Error {
	c := *e
	c.Remedy = fmt.Sprintf(format, args...)
	return &c
}

// Because adds a resource that stands in the way. Messages name no resource but those that a caller named: what else is to be said
// of one stands here, where it can be left out for whoever may not see it.
func (e *Error) Because(r Resource, format string, args ...any) *Error {
	c := *e
	c.Reasons = append(slices.Clone(e.Reasons), Reason{Kind: r.Kind(), ID: r.Base().ID, Name: r.Base().Name, Why: fmt.Sprintf(format, args...)})
	return &c
}

// HasCode reports whether err holds an *Error with that code.
func HasCode(err error, code ErrorCode) bool {
	var e *Error
	return errors.As(err, &e) && e.Code == code
}
