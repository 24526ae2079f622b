// Package fleet runs production agents on models of whole hosts: the engine, the ledger, the link and every kind are those
// of shoal-agent, only the machine below them is a model of agent/sim. One process holds thousands of them.
//
// Its tests are the fleet layer of the test plan: several controllers and many agents in one process with a fake clock and a
// real NATS server, disturbed by seeded faults; when the faults have stopped, the fleet must be as it was asked to be, and at no
// time may it have done what must never happen. See fleet_test.go.
package fleet
