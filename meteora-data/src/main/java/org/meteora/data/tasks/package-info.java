/** The tasks: where each comes from, its prompt and its metrics. */
package org.meteora.data.tasks;
