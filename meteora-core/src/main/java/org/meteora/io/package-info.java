/** Files written whole or not at all, locks, JSON lines, digests, progress. */
package org.meteora.io;
