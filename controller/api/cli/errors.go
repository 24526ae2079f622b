package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"shoal/controller/api"
	"shoal/controller/resource"
)

// The exit codes.
const (
	ExitOK        = 0
	ExitError     = 1
	ExitUsage     = 2
	ExitNotFound  = 3
	ExitConflict  = 4
	ExitCapacity  = 5
	ExitTimeout   = 6
	ExitNoAnswer  = 7
	ExitForbidden = 8
	ExitFailed    = 9
)

// ExitCodes is the text of the help about exit codes.
func ExitCodes() string {
	return `Exit codes:
  0  done
  1  an error that has no code of its own
  2  the command line or a parameter is wrong
  3  something named is not there
  4  it contradicts what is there, or something still uses it
  5  no host, storage or address is left that fits, or the quota is used up
  6  --wait took longer than --wait-timeout; the controller goes on
  7  the server can't be reached or trusted, or no controller leads
  8  the credentials do not allow it, or nobody is logged in
  9  the controller accepted it, and a host could not bring it about`
}

// usageError is a wrong command line.
type usageError struct{ err error }

func (u usageError) Error() string { return u.err.Error() }
func (u usageError) Unwrap() error { return u.err }

func usage(err error) error { return usageError{err} }

// taskError is a task that failed.
type taskError struct{ err *resource.Error }

func (t taskError) Error() string { return t.err.Error() }
func (t taskError) Unwrap() error { return t.err }

// waitTimeoutError is a wait that was given up.
type waitTimeoutError struct{ err error }

func (t waitTimeoutError) Error() string { return t.err.Error() }

// fail tells an error and gives its exit code.
func (a *App) fail(err error) int {
	var e *resource.Error
	var remedy string
	if errors.As(err, &e) {
		text := e.Message
		if e.Field != "" {
			text = e.Field + ": " + text
		}
		a.tell("error: %s\n", text)
		for _, r := range e.Reasons {
			a.tell("  %s %s: %s\n", r.Kind, r.Name, r.Why)
		}
		remedy = e.Remedy
	} else {
		a.tell("error: %v\n", err)
	}
	code := ExitError
	var u usageError
	var t taskError
	var w waitTimeoutError
	switch {
	case errors.As(err, &t):
		code = ExitFailed
	case errors.As(err, &w):
		code = ExitTimeout
		remedy = "it goes on; follow it with shoalctl task get"
	case errors.As(err, &u):
		code = ExitUsage
	case errors.Is(err, api.ErrUntrusted):
		code = ExitNoAnswer
	case errors.Is(err, api.ErrUnreachable):
		code = ExitNoAnswer
		remedy = "check --server and that the controller runs there"
	case errors.Is(err, api.ErrNoLeader):
		code = ExitNoAnswer
		remedy = "check that a controller runs; after a crash another one takes over within seconds, so try again"
	case errors.Is(err, context.Canceled):
		remedy = "interrupted; what was accepted goes on"
	case e != nil:
		switch e.Code {
		case resource.CodeInvalid:
			code = ExitUsage
		case resource.CodeNotFound:
			code = ExitNotFound
		case resource.CodeConflict, resource.CodeInUse:
			code = ExitConflict
		case resource.CodeCapacity, resource.CodeQuota:
			code = ExitCapacity
		case resource.CodeForbidden, resource.CodeLogin:
			code = ExitForbidden
		case resource.CodeNotLeader:
			code = ExitNoAnswer
		case resource.CodeInternal, resource.CodeBusy: // the message says how long to wait
		}
	case isUsage(err):
		code = ExitUsage
		remedy = "see shoalctl --help"
	}
	if remedy != "" {
		a.tell("hint: %s\n", remedy)
	}
	return code
}

// isUsage recognises what cobra itself refuses; it has no type of its own for that.
func isUsage(err error) bool {
	return strings.HasPrefix(err.Error(), "unknown command") || strings.HasPrefix(err.Error(), "unknown flag") ||
		strings.HasPrefix(err.Error(), "invalid argument") || strings.HasPrefix(err.Error(), "flag needs an argument")
}

// tell says something beside the answer. Where even that can't be written, there is nobody left to tell.
func (a *App) tell(format string, args ...any) { _, _ = fmt.Fprintf(a.Err, format, args...) }
