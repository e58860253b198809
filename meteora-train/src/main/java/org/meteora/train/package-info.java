/** Training of gates and adapters: the loop, its settings, its checkpoints. */
package org.meteora.train;
