/** Lets a model answer a task's questions, and scores the answers. */
package org.meteora.eval;
