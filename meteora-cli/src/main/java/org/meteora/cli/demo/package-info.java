/** The demonstration: tasks, base model and adapters small enough to train on a laptop. */
package org.meteora.cli.demo;
